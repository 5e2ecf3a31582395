"""Unmodified QEMU guests: their shape, their command line, their monitor, and a system call made inside them."""
