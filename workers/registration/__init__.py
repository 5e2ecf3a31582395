"""When memory is registered: policies of one contract."""
