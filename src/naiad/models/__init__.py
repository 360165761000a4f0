"""Model files on disk: where they live, what their headers say, and how to fetch the known ones."""
