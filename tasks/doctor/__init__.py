"""What `droveway doctor` looks at on a host, and what it makes of it."""
