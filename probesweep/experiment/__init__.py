"""One TOML file runs everything."""
