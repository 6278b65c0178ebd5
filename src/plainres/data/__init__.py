"""Images: where they come from and the batches made of them. conf/data names these sources."""

from plainres.data.hub import HubImages
from plainres.data.sources import Digits, Images, Source, Split, Synthetic

__all__ = ["Digits", "HubImages", "Images", "Source", "Split", "Synthetic"]
