"""The `features` section: where the weights of the extractors come from."""

from sfumato.base.section import Section


class FeaturesConfig(Section):
    """Where the weights of the extractors come from."""

    inception: str = "auto"
    """FID's Inception: a file; auto: $SFUMATO_INCEPTION, then what a download left."""
    clip: str = "openai/clip-vit-base-patch32"
    """CLIP: a Hub name or a folder."""
    dinov2: str = "facebook/dinov2-base"
    """DINOv2: a Hub name or a folder."""
    resnet: str = "microsoft/resnet-18"
    """ImageNet's ResNet-18, whose body the paper's classifier had: a Hub name or a folder."""
    small_clip: str = "bundled"
    """The small CLIP: bundled, or the folder of another."""
    may_download: bool = False
    """Whether weights that are not at hand are fetched (91 MiB, and what the Hub names hold)."""
