"""A trained model: loading, sampling, the diffusers pipeline, export, bundles."""
