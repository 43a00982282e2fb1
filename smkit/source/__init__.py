"""The source folder: which of its files travel to a job, and how. No room here speaks to AWS."""
