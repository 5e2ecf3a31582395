"""What is set: capabilities, parameters, settings, and the Celery options made from them."""
