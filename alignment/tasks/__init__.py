"""One page a task: the parts put together."""
