"""vca tags video archives: picture, sound and text in, Parquet tables of categories and events out."""

__version__ = "0.1.0"
