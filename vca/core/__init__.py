"""Pure contracts: time, identity, taxonomy, schemas, configuration, errors. No I/O, no clock, no environment."""
