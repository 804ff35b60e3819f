"""How programs are fed and run: batches, processes, graphs of operations."""
