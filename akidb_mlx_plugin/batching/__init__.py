"""Many callers, one batch: the queue, scheduling, pending requests, deadlines."""
