"""What is asked: messages, queues, admission, the Celery tasks, and the `droveway` command."""
