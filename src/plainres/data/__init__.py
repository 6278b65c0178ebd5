"""Image data sets and batches. conf/data refers to these sources."""

from plainres.data.hub import HubImages
from plainres.data.sources import Digits, Images, Source, Split, Synthetic

__all__ = ["Digits", "HubImages", "Images", "Source", "Split", "Synthetic"]
