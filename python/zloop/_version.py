"""The one place where the version is written; packaging and the native engine read it from here."""

__version__ = "0.1.0"
