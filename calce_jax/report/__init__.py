"""What a person looks at: the page of moments and the timeline image."""
