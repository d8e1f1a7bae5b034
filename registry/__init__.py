"""Everything that turns a name into a thing: a method into a function, a reward into a scorer, a source into
rows or weights, a fingerprint into an artifact."""
