"""Where shards go: the contract (``base``), how to find one (``resolve``), spans around it, and the Hub."""
