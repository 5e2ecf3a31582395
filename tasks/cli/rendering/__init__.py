"""What is known → what is shown. Nothing here asks anybody: values in, text and rich renderables out."""
