"""A job in units of work: dealt to machines that know nothing of each other, or to a cluster."""
