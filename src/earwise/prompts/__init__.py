"""Text of prompts and targets: the prompt styles of the papers (`styles.py`) and the chat templates of the model
families (`chat_templates.py`). The way from an `Example` to text, before any tokenizer. No torch.
"""

from earwise.prompts.chat_templates import EMBEDDED as EMBEDDED
from earwise.prompts.chat_templates import MELLOW as MELLOW
from earwise.prompts.chat_templates import MELLOW_COMPAT as MELLOW_COMPAT
from earwise.prompts.chat_templates import QWEN2_AUDIO as QWEN2_AUDIO
from earwise.prompts.chat_templates import QWEN2_AUDIO_BASE as QWEN2_AUDIO_BASE
from earwise.prompts.chat_templates import SALMONN as SALMONN
from earwise.prompts.chat_templates import ChatTemplate as ChatTemplate
from earwise.prompts.chat_templates import FixedLayout as FixedLayout
from earwise.prompts.chat_templates import Piece as Piece
from earwise.prompts.chat_templates import Span as Span
from earwise.prompts.chat_templates import render as render
from earwise.prompts.styles import AUDIO_PLACEHOLDER as AUDIO_PLACEHOLDER
from earwise.prompts.styles import CHOICES_PROMPT as CHOICES_PROMPT
from earwise.prompts.styles import INSTRUCTIONS as INSTRUCTIONS
from earwise.prompts.styles import REASONING_STYLES as REASONING_STYLES
from earwise.prompts.styles import TAGGED_STYLES as TAGGED_STYLES
from earwise.prompts.styles import THINKING_STYLES as THINKING_STYLES
from earwise.prompts.styles import hierarchical_tags as hierarchical_tags
from earwise.prompts.styles import part_marker as part_marker
from earwise.prompts.styles import prompt_part as prompt_part
from earwise.prompts.styles import prompt_turns as prompt_turns
from earwise.prompts.styles import question_text as question_text
from earwise.prompts.styles import repeat_audio_parts as repeat_audio_parts
from earwise.prompts.styles import target_text as target_text
from earwise.prompts.styles import xs_cot_chain as xs_cot_chain
