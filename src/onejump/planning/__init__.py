"""What a study will take before it runs."""
