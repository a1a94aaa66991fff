"""A live page of spools: `snapshot` reads one, `watch` remembers what passed, `app` shows both on 127.0.0.1."""
