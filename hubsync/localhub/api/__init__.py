"""The Hub's HTTP API: one module per part of it, each with its handlers and, at its end, their `ROUTES`."""
