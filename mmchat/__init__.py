"""mmchat: a browser chat with pictures, for multimodal language models that ground what they say."""

__version__ = "0.1.0"
