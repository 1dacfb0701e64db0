"""Where S comes from: queries and keys of a model for images, and the affinity they make."""
