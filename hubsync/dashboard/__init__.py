"""A live page of spools: ``snapshot`` reads one, ``history`` adds what happened before, ``server`` serves the page."""
