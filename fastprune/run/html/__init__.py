"""``fastprune report``: what runs reached, as one HTML file that needs nothing beside it."""
