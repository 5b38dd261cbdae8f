"""What a run tells: metrics, console, report, plots."""
