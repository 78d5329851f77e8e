"""A cluster and a configuration -> whether a run would get through, before money is spent on it."""
