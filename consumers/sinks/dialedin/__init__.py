"""DialedIn: whom not to call any more, whom we have missed, and who is called otherwise now."""
