"""What the compiler is asked to do."""

import jax


class no_compilation:
    def __enter__(self):
        self.seen = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.active = True

    def _listen(self, event, duration, **kwargs):
        if getattr(self, "active", False) and "backend_compile" in event:
            self.seen.append(event)

    def __exit__(self, *exc):
        self.active = False
        assert not self.seen
