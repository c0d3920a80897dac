"""The worker process: claims jobs, runs them, acknowledges them, and keeps the queue's house in order."""
