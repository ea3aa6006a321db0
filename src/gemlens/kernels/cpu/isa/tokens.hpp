// What happens to a token between products; see Kernels.
#pragma once

#include "../kernels.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

void quantize(const float* numbers, std::int64_t groups, std::int64_t stride, std::int64_t rest, Group* quantized);
void norm(const float* x, const float* weight, std::int64_t size, float eps, float* y);
void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t size, float eps, float* y);
void rotate(float* head, const float* cos, const float* sin, std::int64_t size);
void gate(float* gate, const float* up, std::int64_t size);
void activate(const float* x, const float* bias, std::int64_t size, float* y);

}  // namespace GEMLENS_ISA
}  // namespace gemlens
