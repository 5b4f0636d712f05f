"""The controller's store of files and of results: in a folder, or in a bucket of S3-compatible storage."""
