"""What a pair's programs are: run, measured, weighed, and refused with a reason."""
