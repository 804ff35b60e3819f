"""Steps, the one loop over them, and runs that go on from where they stopped."""
