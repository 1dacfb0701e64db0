"""What a segmentation is shown and written as."""
