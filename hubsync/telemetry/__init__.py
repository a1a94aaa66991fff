"""What a job reports about itself.

``status`` holds the state and logs its changes; ``heartbeat`` writes it for other processes; ``metrics`` and
``tracing`` export it through OpenTelemetry; ``progress`` and ``live_display`` show it to people.
"""
