"""The service on a Ray cluster: replicas of the same app behind Ray Serve, with Redis between them."""
