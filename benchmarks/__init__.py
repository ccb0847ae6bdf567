"""Tables that are computed cell by cell: a finished cell's JSON is kept and reused."""
