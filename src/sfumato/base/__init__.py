"""What every floor may use: errors, files, pixels, seeds, strict configuration sections."""
