"""Several machines that train as one."""
