"""The `droveway` command."""
