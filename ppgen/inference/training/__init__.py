"""Steps, the one loop over them, and runs that go on from where they stopped.

A step is anything with ``step(*batch) -> loss``. What else the loop uses of it, where it is there:

- ``pair``: what it trains, the step itself if it has none; and ``sites``, parameters that no network of the pair holds;
- ``evaluate(*batch, seed=…) -> loss``: of validation data;
- ``schedules``: told how many steps an epoch has; early stopping waits for their end;
- ``monitors``: numbers by name, noted after each epoch; ``compiled``: whether it runs compiled code;
- ``converged``: true where training is to end after this epoch;
- ``is_ahead`` and ``look()``: on a GPU steps run ahead of the host, and a look raises what has become of them;
- ``state_dict()`` and ``load_state_dict(…)``: for checkpoints; and, before a state is loaded, ``prepare(*batch)`` and
  ``rehearse(*batch)``: what comes into being at a first batch.
"""
