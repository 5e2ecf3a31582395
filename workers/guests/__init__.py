"""What is moved: guests, running or incoming, on this host."""
