"""Teacher and students -> evidence: scores on tasks and on text, size, speed, files for a device, pages."""
