"""The certificate authority, what it issues and what it revokes, and the checks of both."""
