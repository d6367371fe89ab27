"""Many callers, one batch: the queue, who goes next, what is pending, deadlines."""
