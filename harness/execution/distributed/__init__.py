"""distributed: processes that train one model together."""
