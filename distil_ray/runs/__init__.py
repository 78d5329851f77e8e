"""What every command that runs for long shares: its folder and lease, the cluster, the console, stopping."""
