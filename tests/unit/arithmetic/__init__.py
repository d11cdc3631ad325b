"""Weight norm of arrays, held to exact arithmetic."""
